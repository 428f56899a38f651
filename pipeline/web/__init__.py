"""The pages of `tumorlens serve`. They show and ask; `pipeline.services` decides and keeps."""
