"""Kombu's Redis transport, with an atomic claim, leases, guards, and fewer round trips.

What is different from Kombu's, and why:

* A consumer *claims*: one script takes messages out of the queues and notes them as unacknowledged, with the
  server's clock. Kombu pops first and notes later, and a consumer killed in between loses a message.
* An idle consumer waits for a *doorbell*, which publishers ring. It looks every second anyway, for publishers
  that do not.
* While its process lives, a consumer renews the *lease* of what it holds. So the visibility timeout is short, and
  what a killed consumer held is handed out again within 15 s; after some such deaths it is a dead letter.
* Before anything is unpacked, a *guard* looks at it; what would kill or wedge a worker becomes a dead letter.
* Acknowledgements travel with the next claim, and several messages are claimed at once where a consumer may.

Keys and messages are Kombu's: its own consumers and producers work beside this on the same queues.
"""
