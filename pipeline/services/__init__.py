"""What the pages and the commands of review stand on: jobs, uploads, the worklist and the reviewers' decisions."""
