"""What both stages share to train and run networks. In `data`, only this and `augmentation.augment` need torch."""
