"""Encodes values as bytes for the wire and decodes them, within size limits at both ends.

* A **format** (JSON, MessagePack, Protobuf, or your own) is a Kombu serializer. The formats here restore datetime,
  date, time, UUID, Decimal and bytes, and refuse a body that is too large, too deep or has too many values before
  they build it.
* A **codec** (zlib, which Kombu calls gzip; real gzip; zstd; encryption; your own) is a Kombu compression whose
  output is bounded when it decompresses.
* The **packer** encodes a body and compresses it when that saves space. The producer and the result backend use
  it. Only compressed bodies get a header, and any Celery worker can read them.
* The **caps** are the limits on size, depth and number of values, for sent and received bodies.
"""
