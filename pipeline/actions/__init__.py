"""The GitHub Actions side: what an event asks for, what the summary says, whom AWS trusts."""
