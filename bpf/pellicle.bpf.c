// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* The packet's house: nine hooks and the maps they share.
 *
 *     pod ─▶ from_pod ─▶ stack ─▶ (to_overlay ─▶) door ─▶ to_net, backstop ─▶ wire ─▶ from_net (─▶ from_overlay) ─▶ pod
 *
 * Each hook's file is its story; tables.h is the contract with the agent.
 */
#include "door.h"
#include "from_net.h"
#include "from_overlay.h"
#include "from_pod.h"
#include "from_xfrm.h"
#include "to_net.h"
#include "to_overlay.h"

const volatile struct config config = {};

/* keep in BTF what only the agent uses */
const struct exported_enums *exported_enums __attribute__((used));
const struct exported_rows *exported_rows __attribute__((used));

char _license[] SEC("license") = "Dual BSD/GPL";
