"""Ray Serve deployments: plain classes, one per model. No web framework.

They carry no decorator. ``workshop.integration`` turns them into deployments: a decorated class of a module is
pickled by value, with the globals of its module; a plain one by reference.
"""
