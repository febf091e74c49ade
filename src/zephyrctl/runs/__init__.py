"""Run folders: artifacts, manifests and drafts."""
