"""sqshpipe: from a Dockerfile to an immutable, versioned .sqsh that every rank of a Slurm cluster shares."""

__version__ = "0.1.0"
