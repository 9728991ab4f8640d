"""What models say of images: classes, masks, tokens; one image or millions."""
