"""The only place that knows both sides: it gives the API its services, in this process or on Ray Serve."""
