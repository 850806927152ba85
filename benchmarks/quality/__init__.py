"""The proof of the detectors: false alarms, honesty of the knob, and delay, ours and the peers', on seeded streams."""
