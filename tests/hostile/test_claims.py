"""What a sandbox must contain, claim by claim, and the attacks that try each."""

from __future__ import annotations

import pytest
from casemate.hostile.attack import every_attack

CLAIMS: dict[str, str] = {
    # --- files
    "passwords, keys and the project beside the workspace are not there":
        "read_shadow read_home read_neighbour list_state climb_out",
    "a symlink leads to nothing outside": "write_through_link read_link_to_secret",
    "a result that is a link gives nothing of the host back": "output_symlink output_hard_link",
    "a result that is no regular file is refused, and hangs nobody":
        "output_fifo output_socket output_folder output_random make_device",
    "a result is as large, and what, it was said to be":
        "output_huge output_wrong_size output_wrong_digest output_missing output_no_value",
    "an artifact is a regular file with one name, beneath its folder": (
        "artifact_symlink artifact_hard_link artifact_fifo artifact_socket artifact_folder "
        "artifact_missing artifact_changed"
    ),
    "names that a task gives are checked where they are decoded": "artifact_name",
    "artifacts are bounded in size and number, sparse ones too": (
        "artifact_huge artifact_sparse artifact_many"
    ),
    "what runs by itself on the host is marked by diff and refused by apply": "planted_hooks",
    "folders that are bound, and those above them, stay where they are":
        "rename_workspace replace_parent",
    "a link in the place of what is the supervisor's to open is not followed":
        "swapped_workspace swapped_state planted_mount_point",
    "setuid bits, devices, FIFOs and sockets come to nothing":
        "setuid_file leave_special_files file_capabilities make_device",
    "checkpoints are out of reach": "tamper_with_state list_state",
    "/tmp, /dev/shm and the layer end at their size and their count": (
        "fill_tmp fill_inodes fill_shared_memory fill_shared_memory_names "
        "fill_layer fill_layer_inodes file_past_limit"
    ),
    "what is written is the layer's, and the base is as it was":
        "write_workspace chmod_workspace delete_in_workspace link_workspace_file",
    "a layer says nothing to overlayfs by hand": "forge_whiteout redirect_layer",
    "sources, programs and packages are read-only":
        "append_sources write_usr write_packages replace_interpreter",
    # Archives are opened nowhere: no bomb, and no member that leads out, has anything to go off in.
    "a value is bounded before it is taken": "return_too_much output_huge",
    # --- mounts and /proc
    "no call of the mount family reaches the kernel":
        "mount new_mount_api clone_mount_tree move_mount mount_attributes pivot_root",
    "/proc stays mounted, and what is read-only stays so": "uncover_proc remount",
    "no namespace is made or entered": "user_namespace clone_user_namespace clone3 enter_namespace",
    "init cannot be traced, read or written":
        "trace_init write_init_memory write_other_memory steal_descriptor",
    "init's root, environment and command are hidden":
        "through_init_root read_init_environment read_init_command",
    "the kernel's settings are out of reach": "write_kernel_setting sysrq core_pattern kernel_log",
    "cgroups are neither seen nor mounted": "release_agent mount_cgroups",
    "the launcher cannot be overwritten": "replace_interpreter",
    "no leaked descriptor leads out": "leaked_folder inherited_descriptors",
    "no file is opened by its handle": "open_by_handle",
    # --- the kernel's surface
    "io_uring is not to be had": "io_uring",
    "neither are userfaultfd, bpf and performance counters":
        "userfaultfd load_program_into_kernel measure_kernel",
    "the host's kernel, modules, swap, accounting and power are not the task's":
        "load_module replace_kernel swap_to_file account_processes reboot quota",
    "nor are its clocks and its name": "set_clock adjust_clock host_name",
    "nor its keys": "keyring",
    "sockets of unusual families are refused":
        "vsock kernel_crypto packet_socket netlink raw_socket",
    "another architecture's numbers kill": "foreign_system_call interrupt_80",
    "nothing is typed into a terminal":
        "inject_keystrokes paste_selection line_discipline open_terminal",
    "the filter can be neither listened to nor stacked": "listen_to_filter add_filter",
    "a system call that nobody has heard of is none": "unknown_call",
    "a program that is run gains nothing": "setuid_program become_root personality",
    "no chroot to climb out of": "chroot",
    "nor other ways to look at, or hold up, other processes":
        "compare_processes watch_files move_pages hidden_memory",
    # --- processes
    "bombs of processes and threads end at their limit": "fork_bomb vfork_bomb thread_bomb",
    "a daemon is dead after the run": "daemon daemon_of_a_crash",
    "who ignores SIGTERM is killed after his grace": "ignore_sigterm swallow_cancelled",
    "a child that holds stdout delays nobody": "hold_stdout",
    "signals reach the own namespace only":
        "kill_everybody signal_supervisor signal_group confuse_init",
    "the supervisor's processes are out of reach": (
        "see_processes hold_supervisor pin_supervisor renice_supervisor starve_supervisor "
        "read_supervisor_environment"
    ),
    "attempts that run at the same time are strangers": "sibling",
    "whatever dies by itself is judged by how":
        "abort segfault kill_itself exit_quietly sys_exit stop_itself",
    "a supervisor that is killed takes everything along": "kill_engine",
    "a step of the setup that fails is never a good end": "failing_step",
    # --- resources
    "memory ends at its limit, in one process and spread over many":
        "balloon balloons shared_memory swallow_memory_error",
    "memory that no process owns counts":
        "shared_memory memfd detached_segment full_sockets dirty_pages",
    "a share of the processor is the tree's": "cpu_share",
    "what is swapped out counts": "page_out swap_to_file",
    "descriptors end at their limit, and inside": "exhaust_descriptors",
    "time of the processor counts for the group":
        "cpu_in_children cpu_side_by_side busy_loop busy_loop_in_c",
    "sleeping for ever ends": "sleep_for_ever stop_itself",
    "limits are not the task's to lift": "raise_limits limit_init raise_priority shield_from_oom",
    # --- what is said
    "output without end is capped, and what was dropped is counted":
        "flood_stdout flood_stderr_lines flood_logs",
    "a flood of messages bounds the flooder":
        "flood_emits flood_small_emits flood_progress flood_past_rate",
    "frames are whole, single and of bounded size": (
        "link_oversize link_just_oversize link_long_header link_multipart link_empty_frame "
        "link_command link_greeting_again link_garbage"
    ),
    "there is one connection":
        "second_connection link_pass_descriptors close_link close_everything",
    "messages are what they must be": (
        "link_truncated link_unknown_kind link_unknown_field link_deep link_wrong_type "
        "link_bad_text link_nan link_huge_array link_item_of_no_type"
    ),
    # The handshake itself is over before any of the task's code runs.
    "who sends a byte at a time, or half a message, ends by the clock": "link_byte_by_byte",
    "nobody speaks twice, out of turn, or as the supervisor": (
        "link_hello_again link_two_results link_talk_after_result link_supervisors_kind "
        "link_claim_setup"
    ),
    "a forked child does not speak for the task":
        "forked_child_emits forked_child_returns raw_forked_child_emits",
    "the supervisor's sockets are out of reach":
        "reach_events steer_supervisor connect_unix connect_abstract socket_in_workspace",
    "who, what and when of an event is the supervisor's word": "forge_event",
    "pickles are never loaded": "pickle_output return_hostile_type",
    "values and errors of any kind are carried or refused": (
        "return_cycle return_depth return_too_much output_of_no_type hostile_exception "
        "nested_exceptions huge_message huge_traceback huge_type_name endless_recursion"
    ),
    "of descriptors there are stdio and the link": "inherited_descriptors",
    "of the supervisor's environment nothing is left":
        "supervisors_secret preloaded_code loader_variables",
    "memory and queues of the host have no names here": "shared_segment message_queue",
    # --- network
    "no server is reached: the host's, a cloud's, IPv6":
        "connect_tcp connect_ipv6 connect_metadata connect_abroad",
    "nothing is sent out by UDP, ICMP or DNS": "send_udp reach_udp ping ask_name_server raw_socket",
    "the host's devices are not there": "host_devices host_memory",
    # --- fail closed
    "where a wall cannot be had, nothing runs": "missing_landlock missing_namespaces",
    "without its filter nothing runs": "refused_filter",
    "with a capability left nothing runs": "kept_capabilities",
    "as somebody else to the host nothing runs": "kept_identity",
}  # fmt: skip


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claim_is_attacked(claim: str) -> None:
    known = {attack.name for attack in every_attack()}
    assert CLAIMS[claim] and set(CLAIMS[claim].split()) <= known


def test_every_attack_tries_a_claim() -> None:
    tried = {name for names in CLAIMS.values() for name in names.split()}
    assert {attack.name for attack in every_attack()} == tried
