"""Every bound of the wire and of what a task may make us keep, each with its reason."""

KIB = 1024
MIB = 1024 * KIB

# One message of the link. Large enough for any sane item, small enough that a hundred guests with
# one half-read message each cost 100 MiB. Larger outputs go through the outbox file.
MESSAGE_SIZE = 1 * MIB

# One item of a stream: it has to fit a message that names its task too.
ITEM_SIZE = MESSAGE_SIZE - KIB

# A value (run input, task output) that travels by file. The engine copies it once, off the loop.
VALUE_SIZE = 64 * MIB

# Files that one attempt hands over (ctx.artifact). They wait in its tmpfs, and the engine takes one
# after another as a value: together they are no larger than one may be, beside its header.
ARTIFACTS = 64
ARTIFACTS_SIZE = VALUE_SIZE - KIB

# What an artifact is called: a relative path, such as report/index.html. In bytes.
ARTIFACT_NAME_SIZE = 512

# Values above this live in files named by their digest instead of journal rows: SQLite keeps rows
# of this size in a handful of pages, and equal outputs of a chain are then stored once.
INLINE_VALUE_SIZE = 16 * KIB

# What one guest's endpoint may hold that the engine has not yet handled. Reading stops above it.
LINK_BUFFER_SIZE = 2 * MESSAGE_SIZE

# One read of a link: a power of two above the usual 208 KiB socket buffer's half.
LINK_READ_SIZE = 128 * KIB

# One line of JSON on a command's $CASEMATE_EVENTS_FD. A value may be as large as VALUE_SIZE, and
# JSON is wordier than msgpack: base64 makes 4/3 of bytes, escapes and quotes of short keys more.
EVENTS_LINE_SIZE = 2 * VALUE_SIZE

# One line of stdout or stderr becomes one task.log; longer lines are cut into pieces of this size.
LOG_LINE_SIZE = 8 * KIB

# What an event counts against limits.output at least: its row in the journal weighs about this
# beside the value. A task that emits nothing 80 000 times a second is a flood too.
EVENT_SIZE = 64

# The text of one ctx.log: a model's whole answer fits; cut by the guest, refused by the engine.
LOG_TEXT_SIZE = 64 * KIB

# Text a task may put into one error (message, traceback) before it is cut.
ERROR_TEXT_SIZE = 16 * KIB

# The qualified name of an exception's type.
ERROR_TYPE_SIZE = 512

# What walls refused before one error: an exception and those it was raised from; one is the rule.
# A subject is a path or an address: characters, enough to know it by.
REFUSALS = 8
REFUSAL_SUBJECT = 256

# Lists and dicts within each other in one value. Far beyond data that people make, and a fifth of
# what Python's recursion limit leaves to whoever walks, prints or compares it.
VALUE_DEPTH = 128

# The same when a value is read: it may then be inside an input ({upstream: output}) or the data of
# an event ({outputs: {task: output}}), which must not make a legal value unreadable.
READ_DEPTH = VALUE_DEPTH + 8

# What may wait for the front. Beyond it frames are dropped; observers see the gap and ask for a
# replay, so this costs no event, only memory: about 20 000 typical frames.
FRONT_BUFFER_SIZE = 8 * MIB

# One commit of a run's journal: an fsync is spread over this many events (measured: nothing is
# gained above a thousand), and the writer holds at most this much twice (struct and row).
JOURNAL_GROUP_EVENTS = 4096
JOURNAL_GROUP_SIZE = 8 * MIB

# What may wait for the journal before links are no longer read: half a second of a slow disk.
JOURNAL_BACKLOG_SIZE = 32 * MIB

# One page that a reader of a journal holds in memory.
JOURNAL_PAGE_SIZE = 8 * MIB

# What one published event may weigh: above it, its values are left out and fetched by control. With
# the queue below this bounds what an observer who stopped reading costs.
PUBLISHED_EVENT_SIZE = 64 * KIB

# What the front queues for each observer (libzmq counts messages, and queues share their bytes): a
# tenth of a second at full speed. Who falls behind further sees a gap and replays.
FRONT_QUEUE_EVENTS = 10_000

# The front at rest has 60 MiB of writable memory. Beyond the cap libzmq aborts: observers find a
# new epoch a moment later, and the run never noticed.
FRONT_MEMORY = 1024 * MIB
FRONT_FILES = 512  # one for each observer and client, and a handful for journals

# Replies of the front: a page is read, encoded and queued in a few milliseconds.
REPLAY_PAGE_EVENTS = 1000
REPLAY_PAGE_SIZE = 1 * MIB
LISTED_RUNS = 100

# Replies that wait for one client who does not read them; then they are dropped.
CONTROL_QUEUE = 16

# The runs of which a heartbeat tells the last seq: the latest ones, so that its size is bounded.
HEARTBEAT_RUNS = 256
HEARTBEAT_SECONDS = 1.0

# What an observer holds of what arrives live while it asks for what it missed: as much as the front
# queues for one, and with events of common size no more than a page of a replay takes.
HELD_EVENTS = 10_000
HELD_SIZE = 8 * MIB

# What libzmq queues in an observer of ours; the rest waits, and is dropped, at the front.
OBSERVER_QUEUE_EVENTS = 1000

# A peer that connects and says nothing holds a file descriptor of the front no longer than this.
HANDSHAKE_SECONDS = 3.0

# A control request: the largest is a piece of an upload. What is beyond it libzmq does not take in.
CONTROL_REQUEST_SIZE = 4 * MIB

# What an observer says: subscriptions, of topics that have some hundred bytes (libzmq keeps a node
# for each), and before them a handshake, of which no part has twice as many as CURVE's 400.
SUBSCRIPTION_SIZE = 1 * KIB

# Whom a supervisor lets in from elsewhere: a list that people keep by hand; and any file of keys,
# which has forty characters for each of them, a name and a word.
CLIENT_KEYS = 1000
KEY_FILE_SIZE = 256 * KIB

# From elsewhere: a piece of an upload, and the words around it. Between this and what libzmq takes
# in, a request is answered and logged.
REMOTE_REQUEST_SIZE = MIB + 4 * KIB

# Requests on their way from the gate to the front: more than its engine has under way at once, and
# 64 MiB of the largest.
GATE_QUEUE = 64

# From elsewhere a greeting and its proofs are four journeys, of a second each on the worst line, to
# a process that gives way to all others of its host.
REMOTE_HANDSHAKE_SECONDS = 10.0

# What the gate writes before a request, to know the reply by: whose it is, in a few words.
ENVELOPE_SIZE = 1 * KIB

# Lines that refusals make us log: enough to see what is going on, then one a second, which makes
# some megabytes of a day of floods.
GATE_LOG_BURST = 50
GATE_LOG_RATE = 1.0

# What is submitted travels in pieces, each held in memory once. The whole: sources (128 MiB at
# most), a run's input and a pipeline; of those that wait to be started, or were left halfway, so
# many and so much is kept.
UPLOAD_PIECE_SIZE = 1 * MIB
SUBMISSION_SIZE = 256 * MIB
SUBMISSIONS_KEPT = 64
SUBMISSIONS_SIZE = 1024 * MIB

# All pipelines that `serve` knows by name, each as a bundle in memory: code and documents, some KiB
# each as a rule. A folder with more than this has data in it.
CATALOGUE_SIZE = 256 * MIB

# A request's own id, kept with its reply: a UUID has 36.
CONTROL_ID_LENGTH = 128

# Ids of runs (12), tasks (64) and checkpoints in requests that reach the engine.
NAME_LENGTH = 64

# Why a run is cancelled: a sentence.
CONTROL_REASON_LENGTH = 1000

# Risky changes that an `apply` names one by one; whoever wants more names a folder.
CONTROL_PATHS = 16
CONTROL_PATH_LENGTH = 200

# Requests that steer, as they go from the front to the engine. One: the texts above, of four bytes
# a character. At once: more than people and scripts have under way; the front refuses the next, and
# a front that passes on more is not ours any more. A second: what a script does in a tight loop;
# beyond it the engine does not read. Replies kept for a request that comes again.
CONTROL_VERB_SIZE = 16 * KIB
CONTROL_OUTSTANDING = 64
CONTROL_RATE = 100
CONTROL_REPLIES_KEPT = 256

# A run's journal, as far as one supervisor has written it: a thousand attempts that each say all
# that limits.output allows by default. Looked at once a second.
RUN_JOURNAL_SIZE = 16 * 1024 * MIB

# What layers leave free on their file system (of a small one, a twentieth): the journals of all
# runs and the outputs of tasks that complete must still find room there. Looked at once a second.
DISK_RESERVE = 256 * MIB

# What a task may keep by ctx.save: progress of a job, not its data. It travels in RUN, beside the
# input and a pickled function, in one message.
SAVED_SIZE = 256 * KIB

# Items of a stream edge on their way to a consumer: enough that neither end waits for the other at
# every item, little enough that a hundred edges cost 100 MiB.
STREAM_CREDIT_ITEMS = 256
STREAM_CREDIT_SIZE = 1 * MIB

# Items of a stream whose consumer has not started: on disk, in the journal. Above the default of
# limits.output on purpose: this bounds what a run's streams keep, that what one attempt says, and
# who gives a task leave to say more need not find a second bound at once.
STREAM_BACKLOG = 64 * MIB

# What a whole run may take before it fails rather than go round for ever. A storm of retries ends;
# a graph of hundreds whose tasks try three times each does not meet it.
RETRY_BUDGET = 1000
ROLLBACK_BUDGET = 3

# A check (validate, recover) looks at one value. Seconds; the task's own wall limit, where shorter.
CHECK_WALL = 30.0

# Why an output is not valid: enough to mend it by. Characters of each.
REASONS = 20
REASON_LENGTH = 1000

# Seconds that a task's exception may ask us to wait: no more than a person would.
RETRY_AFTER = 24 * 3600.0

# Paths named in one event or message (conflicts, changes of the workspace); the rest is counted.
PATHS_NAMED = 20

# A patch that a program gets whole, in memory: what a person could review a thousand times over.
# `casemate diff` streams larger ones.
PATCH_SIZE = 64 * MIB

# Who holds the probe of a breaker says so every second. After five without a word the supervisor is
# dead, or stands still: the next may probe. A loaded machine delays a word by tenths of a second.
BREAKER_RENEWAL = 1.0
BREAKER_LEASE = 5.0

# Sandboxes that one supervisor keeps made ahead, for tasks with `preload`: two for each core of a
# small machine. Each is frozen, and takes its memory, ten descriptors and a uid.
WARM_SANDBOXES = 4

LINK_VERSION = 4
EVENT_VERSION = 1
CONTROL_VERSION = 1
