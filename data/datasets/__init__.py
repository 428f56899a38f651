"""Labeled data sets: their layouts, patients, folds and near-duplicates."""
