"""boto3 as it comes, with placeholders for keys."""

import json
import os
import random
import sys
import urllib.request

import boto3

folder, what = sys.argv[1:]


def invoke(prompt):
    """Asks a model, and is told what arrived."""
    body = json.dumps({"prompt": prompt})
    answer = boto3.client("bedrock-runtime").invoke_model(modelId="anthropic.claude-3:0", body=body)
    answer = json.load(answer["body"])
    assert answer["model"] == "anthropic.claude-3:0" and answer["bytes"] == len(body), answer


if what == "bearer":
    os.environ["AWS_BEARER_TOKEN_BEDROCK"] = "AWS_BEARER_TOKEN_BEDROCK"
    invoke("coat")
    sys.exit()

# One that s3transfer does at once, and one that it does in parts.
whole = random.Random(7).randbytes({"small": 1 << 14, "large": 64 << 20, "cut": 20 << 20}[what])
with open(f"{folder}/big", "wb") as file:
    file.write(whole)

s3 = boto3.client("s3")
assert s3.meta.config.signature_version == "s3v4", s3.meta.config.signature_version

s3.put_object(Bucket="coats", Key="small", Body=b"a coat")
assert s3.get_object(Bucket="coats", Key="small")["Body"].read() == b"a coat"

odd = "left side/a coat (1)+~!*'é&=.txt"
s3.put_object(Bucket="coats", Key=odd, Body=b"odd", Metadata={"who": "a  b"}, ContentType="text/plain; x=y")
assert s3.get_object(Bucket="coats", Key=odd)["Body"].read() == b"odd"
assert odd in [it["Key"] for it in s3.list_objects_v2(Bucket="coats", Prefix="left side/")["Contents"]]

s3.upload_file(f"{folder}/big", "coats", "big")
s3.download_file("coats", "big", f"{folder}/back")
with open(f"{folder}/back", "rb") as file:
    assert file.read() == whole
with open(f"{folder}/big", "rb") as file:
    s3.put_object(Bucket="coats", Key="big-at-once", Body=file)
if what != "large":
    # Without a range. Of the largest, one download is enough.
    assert s3.get_object(Bucket="coats", Key="big-at-once")["Body"].read() == whole

link = s3.generate_presigned_url("get_object", Params={"Bucket": "coats", "Key": odd}, ExpiresIn=3600)
with urllib.request.urlopen(link) as answer:
    assert answer.read() == b"odd"
link = s3.generate_presigned_url("put_object", Params={"Bucket": "coats", "Key": "linked"}, ExpiresIn=3600)
request = urllib.request.Request(link, data=b"by link", method="PUT", headers={"Content-Type": ""})
assert urllib.request.urlopen(request).status == 200
assert s3.get_object(Bucket="coats", Key="linked")["Body"].read() == b"by link"

table = boto3.resource("dynamodb").Table("coats")
table.put_item(Item={"id": "1", "colour": "grey"})
assert table.get_item(Key={"id": "1"})["Item"]["colour"] == "grey"

invoke("coat")
# A body that is read whole first.
invoke("x" * (20_000 if what == "small" else 2_000_000))
