"""The evaluation: what is measured and recorded becomes pictures. Recordings are JSON files beside the pictures."""
