"""The ways from an image to a .sqsh, behind one interface: see `pipeline.stages.convert`."""
