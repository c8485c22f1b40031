"""MySQL and Kafka, on which the service rests, run on this machine from packages and jars, without Docker."""

from compose._errors import PortTaken, ServerFailed, ServerMissing, StackError
from compose.server import ServerInfo
from compose.stack import DEFAULT, SERVERS, Stack

__all__ = ["DEFAULT", "SERVERS", "PortTaken", "ServerFailed", "ServerInfo", "ServerMissing", "Stack", "StackError"]
