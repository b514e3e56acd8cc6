# Bucket, database and roles on AWS for MLflow, Prefect and DVC. Neither this code nor its state holds a password:
# AWS creates and keeps the database administrator's (Secrets Manager), the services' own are set by
# infra/databases.sh, and clients of the bucket use a role, not keys.
terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.0"
    }
  }
}

provider "aws" {
  region = var.region
}

variable "region" {
  description = "Where everything stands, such as eu-central-1."
  type        = string
}

variable "bucket" {
  description = "Name of the bucket, unique in the world."
  type        = string
}

variable "vpc_id" {
  description = "The network in which the cluster runs."
  type        = string
}

variable "private_subnet_ids" {
  description = "Subnets without a way in from the internet, in two zones at least."
  type        = list(string)
}

variable "cluster_security_group_id" {
  description = "The security group of the cluster's nodes: nobody else reaches the database."
  type        = string
}

variable "oidc_provider_arn" {
  description = "The cluster's identity provider."
  type        = string
}

variable "oidc_issuer" {
  description = "Its issuer without https://."
  type        = string
}

output "mlflow_artifacts_destination" {
  value = "s3://${aws_s3_bucket.store.id}/mlflow"
}

output "dvc_remote" {
  value = "s3://${aws_s3_bucket.store.id}/dvc"
}

output "database_address" {
  value = aws_db_instance.postgresql.address
}

output "database_administrator" {
  description = "Secret with the administrator's password, for one run of infra/databases.sh."
  value       = aws_db_instance.postgresql.master_user_secret[0].secret_arn
}

output "role_arns" {
  description = "For the annotations of the service accounts mlflow, worker and backup (infra/kubernetes/namespace.yaml)."
  value       = { for name, role in aws_iam_role.member : name => role.arn }
}
