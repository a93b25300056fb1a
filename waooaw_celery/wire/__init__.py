"""How values become bytes on the wire, and bytes values again, within bounds at both ends.

* A **format** (JSON, MessagePack, Protobuf, or one of your own) is a Kombu serializer. The ones here bring back
  datetime, date, time, UUID, Decimal and bytes alike, and refuse what is larger, deeper or has more parts than is
  accepted before they build it.
* A **codec** (zlib, which Kombu calls gzip; real gzip, zstd; encryption; one of your own) is a Kombu compression
  that can be stopped: what it unpacks is bounded.
* The **packer** writes a body in its format, and packs it when that pays; ``Producer`` and the result backend
  use it. Nothing in the headers says so unless a body is packed: any Celery worker reads what travels.
* The **caps** say how large, deep and many-parted what is sent and received may be.
"""
