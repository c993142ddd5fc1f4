#!/bin/sh
# A Pod that is replaced has another address, and tells the others of it.
exec redis-server /etc/redis/redis.conf --cluster-announce-ip "$POD_IP"
