"""The servers on which the service rests, run on this machine from packages and jars, without Docker."""

from compose._errors import PortTaken, ServerFailed, ServerMissing, StackError
from compose.server import ServerInfo
from compose.stack import MAIN_SERVERS, SERVERS, Stack

__all__ = ["MAIN_SERVERS", "SERVERS", "PortTaken", "ServerFailed", "ServerInfo", "ServerMissing", "Stack", "StackError"]
