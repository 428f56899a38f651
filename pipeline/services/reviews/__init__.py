"""The review desk: what needs a person, what reviewers draw and decide, and how far they agree."""
