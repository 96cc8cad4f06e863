"""The walls: one kernel mechanism a file, and the two programs (zygote, guest) that use them."""
