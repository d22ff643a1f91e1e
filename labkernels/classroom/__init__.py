"""Making the book from its sources, handing it out, and grading it; README.md says how a lab is written."""
