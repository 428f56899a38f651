"""Networks of both stages, trained and run. Of `data`, only this and `augmentation.augment` need torch."""
