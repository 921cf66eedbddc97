"""Images, folders of people, splits, augmentation, and the files that codes are kept in."""
