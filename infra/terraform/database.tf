# PostgreSQL for MLflow and Prefect: encrypted, in private subnets, backed up, reachable from the cluster only.
resource "aws_db_subnet_group" "postgresql" {
  name       = "cxr"
  subnet_ids = var.private_subnet_ids
}

resource "aws_security_group" "postgresql" {
  name        = "cxr-postgresql"
  description = "PostgreSQL, from the cluster's nodes alone"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_ingress_rule" "from_cluster" {
  security_group_id            = aws_security_group.postgresql.id
  referenced_security_group_id = var.cluster_security_group_id
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
}

resource "aws_db_parameter_group" "postgresql" {
  name   = "cxr"
  family = "postgres17"
  parameter {
    name  = "rds.force_ssl"
    value = "1"
  }
}

resource "aws_db_instance" "postgresql" {
  identifier                      = "cxr"
  engine                          = "postgres"
  engine_version                  = "17"
  instance_class                  = "db.t4g.medium"
  allocated_storage               = 50
  max_allocated_storage           = 200
  storage_encrypted               = true
  kms_key_id                      = aws_kms_key.store.arn
  username                        = "administrator"
  manage_master_user_password     = true
  db_subnet_group_name            = aws_db_subnet_group.postgresql.name
  vpc_security_group_ids          = [aws_security_group.postgresql.id]
  parameter_group_name            = aws_db_parameter_group.postgresql.name
  publicly_accessible             = false
  multi_az                        = true
  backup_retention_period         = 14
  copy_tags_to_snapshot           = true
  deletion_protection             = true
  skip_final_snapshot             = false
  final_snapshot_identifier       = "cxr-last"
  auto_minor_version_upgrade      = true
  enabled_cloudwatch_logs_exports = ["postgresql"]
}
