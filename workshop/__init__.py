"""FastAPI in front of Ray Serve: the service that the workshop builds, and the lab that its notebooks use."""

from importlib.metadata import version

__version__ = version("fastapi-ray-serve-workshop")
