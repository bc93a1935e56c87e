"""The edge to Amazon ECR's control plane. boto3 is imported when it is first needed: it is slow to load."""
