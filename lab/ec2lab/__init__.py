"""A stand-in for EC2 on one Linux machine: real hosts, a bridge, an EC2 API and an ACME certificate authority."""
