"""Stage two: a Res-U-Net that draws the tumor's mask."""
