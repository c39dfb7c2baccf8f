"""When does a channel exist, and what does a network cost? Formulas over gates, read softly and exactly."""
