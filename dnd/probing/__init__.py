"""Probing sets: folders and unions of images, decoded and preprocessed ahead."""
