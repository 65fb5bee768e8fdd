"""What runs on the robot and the server: wire, link, robot, server, selector, deploy.

from runtime import Robot, Server
"""

from __future__ import annotations

from runtime.robot import Result, Robot
from runtime.server import Server

__all__ = ["Result", "Robot", "Server"]
