"""Whose fault it is.

`LocalViolation`: we broke our own rules; it is a bug and may crash us.
`RemoteViolation`: the peer broke them; it becomes a verdict and the supervisor carries on.
Anything else is the outside world (`OSError` and kin), caught where the operation has a name.
"""

__all__ = ["CasemateError", "LocalViolation", "RemoteViolation", "SetupRefused", "UsageError"]


class CasemateError(Exception):
    """Base of every error that casemate raises on purpose."""


class LocalViolation(CasemateError):
    """This side broke a rule of the protocol: a bug in casemate."""


class RemoteViolation(CasemateError):
    """The other side broke a rule of the protocol: it is killed, with error kind `protocol`."""


class UsageError(CasemateError):
    """Input a person can mend: the message says what, where, and what to do."""


class SetupRefused(CasemateError):
    """A sandbox cannot be built as asked; the message names what is missing and the remedy."""
