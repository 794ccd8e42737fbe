"""Pure core: arrays and records; no disk, no clock, no device, no global random state."""
