"""images.yaml as validated values: what to build, from what, into which registry and store.

`reading.load` is the one way in. Text from outside passes through pydantic models (`document`) and comes out
as the frozen dataclasses of `types`, with defaults and overrides applied. Nothing is imported here: names and
quantities serve verbs that must start fast.
"""
