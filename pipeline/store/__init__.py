"""The shared folder of releases: records, channels, leases, retention, and the few atomic steps it all
rests on.
"""
