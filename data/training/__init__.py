"""Networks of both stages, trained and run. Of `data`, only this and `data.augmentation.augment` need torch."""
