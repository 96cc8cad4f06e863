"""The suites on a host of our own making: `make test-vm`. See `__main__.py`."""
