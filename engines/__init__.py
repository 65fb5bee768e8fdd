"""What an executable part is: backends, codecs, the bundle and its manifest, the errors."""
