"""The parts of an evaluation: the faces, the metrics, the intervals, the tables and the sheets of pictures."""
