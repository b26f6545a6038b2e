"""Configuration, annotation lists, data sets and augmentation."""
