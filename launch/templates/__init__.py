"""The pages: run.html, data.html, and what they share."""
