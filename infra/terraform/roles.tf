# Rights in the bucket, each service through its own service account in the namespace `cxr`. The web app, the PACS worker
# and Prefect's server have no role: they reach models through MLflow. Nobody may change the bucket itself, and only
# MLflow may delete; deleted versions are kept for 90 days.
locals {
  reads  = ["s3:GetObject"]
  writes = ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"]
  members = {
    mlflow = { # the files of runs and models
      mlflow = concat(local.writes, ["s3:DeleteObject"])
    }
    worker = { # DVC's remote; scores that machines share; raw sets, and images to be scored, which others put there
      dvc      = local.writes
      scores   = local.writes
      raw      = local.reads
      incoming = local.reads
    }
    backup = {
      mlflow = local.reads
      dvc    = local.reads
    }
  }
}

data "aws_iam_policy_document" "trust" {
  for_each = local.members
  statement {
    effect  = "Allow"
    actions = ["sts:AssumeRoleWithWebIdentity"]
    principals {
      type        = "Federated"
      identifiers = [var.oidc_provider_arn]
    }
    condition {
      test     = "StringEquals"
      variable = "${var.oidc_issuer}:sub"
      values   = ["system:serviceaccount:cxr:${each.key}"]
    }
    condition {
      test     = "StringEquals"
      variable = "${var.oidc_issuer}:aud"
      values   = ["sts.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "rights" {
  for_each = local.members
  statement {
    sid       = "List"
    effect    = "Allow"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.store.arn]
    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = flatten([for prefix in keys(each.value) : [prefix, "${prefix}/*"]])
    }
  }
  dynamic "statement" {
    for_each = each.value
    content {
      sid       = "Objects${title(statement.key)}"
      effect    = "Allow"
      actions   = statement.value
      resources = ["${aws_s3_bucket.store.arn}/${statement.key}/*"]
    }
  }
  statement {
    sid       = "Key"
    effect    = "Allow"
    actions   = each.key == "backup" ? ["kms:Decrypt"] : ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [aws_kms_key.store.arn]
  }
}

resource "aws_iam_role" "member" {
  for_each           = local.members
  name               = "cxr-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.trust[each.key].json
}

resource "aws_iam_role_policy" "member" {
  for_each = local.members
  name     = "bucket"
  role     = aws_iam_role.member[each.key].id
  policy   = data.aws_iam_policy_document.rights[each.key].json
}
