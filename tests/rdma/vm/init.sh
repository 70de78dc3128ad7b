#!/bin/busybox sh
# First process of the guest: mounts the host's root (9p, read-only) under a tmpfs overlay, then runs the job.
/bin/busybox mkdir -p /proc /sys /dev /host /rw /new /bin /sbin
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox --install -s /bin

for module in $(cat /modules/order); do
  insmod "/modules/$module" || echo "medes-vm: cannot load $module"
done

mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=524288 host /host || echo "medes-vm: no host share"
mount -t tmpfs -o size=90% tmpfs /rw
mkdir -p /rw/upper /rw/work
mount -t overlay -o lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work overlay /new || echo "medes-vm: no overlay"
mkdir -p /new/mnt/medes-vm
mount -t 9p -o trans=virtio,version=9p2000.L,cache=none,msize=524288 share /new/mnt/medes-vm || echo "medes-vm: no share"
# A project that lies under /tmp must stay in sight there.
tmp=tmpfs:tmp
grep -q medes.keep_tmp /proc/cmdline && tmp=
for fs in proc:proc sysfs:sys devtmpfs:dev tmpfs:run $tmp; do
  mount -t "${fs%%:*}" "${fs%%:*}" "/new/${fs##*:}"
done
mkdir -p /new/dev/shm /new/dev/pts
mount -t tmpfs tmpfs /new/dev/shm
mount -t devpts devpts /new/dev/pts
mkdir -p /new/sys/fs/cgroup && mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
exec switch_root /new /bin/bash /mnt/medes-vm/job.sh
