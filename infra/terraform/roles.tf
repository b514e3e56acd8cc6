# Rights in the bucket: MLflow's server below mlflow/, a worker below dvc/, each through its service account in the
# namespace `cxr`. Neither may change the bucket itself. Only MLflow may delete; deleted versions are kept for 90 days.
locals {
  members = {
    mlflow = {
      prefix  = "mlflow"
      actions = ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload", "s3:DeleteObject"]
    }
    worker = {
      prefix  = "dvc"
      actions = ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"]
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
      values   = ["${each.value.prefix}/*"]
    }
  }
  statement {
    sid       = "Objects"
    effect    = "Allow"
    actions   = each.value.actions
    resources = ["${aws_s3_bucket.store.arn}/${each.value.prefix}/*"]
  }
  statement {
    sid       = "Key"
    effect    = "Allow"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
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
