"""The registry of images: client, sessions, credential chain, tags, referrers.

Nothing is imported here: threads that load two of these modules at once would meet half-loaded ones.
"""
