/* A plugin for qemu's user emulation (plugin API 1): how many guest instructions were executed, by class of the
 * AArch64 encoding (bits 28..25). Declares what it uses of qemu's interface, so that no header is needed.
 * Usage: qemu-aarch64 -plugin ./count.so,out=counts.json ... */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define PUBLIC __attribute__((visibility("default")))

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef struct qemu_info qemu_info;
enum inline_op { ADD_U64 = 0 };

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum inline_op, void *, uint64_t);

PUBLIC int qemu_plugin_version = 1;

enum { ALL, VECTOR, MEMORY, BRANCH, OTHER, CLASSES };
static uint64_t executed[CLASSES];
static char file[4096] = "counts.json";

static int class_of(uint32_t word) {
  unsigned op0 = word >> 25 & 15;
  if ((op0 & 7) == 7) return VECTOR;
  if ((op0 & 5) == 4) return MEMORY;
  if ((op0 & 14) == 10) return BRANCH;
  return OTHER;
}

static void translated(plugin_id id, struct qemu_plugin_tb *block) {
  uint64_t inside[CLASSES] = {0};
  size_t count = qemu_plugin_tb_n_insns(block);
  for (size_t i = 0; i < count; i++) {
    uint32_t word;
    memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof word);
    inside[ALL]++;
    inside[class_of(word)]++;
  }
  for (int c = 0; c < CLASSES; c++)
    if (inside[c]) qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &executed[c], inside[c]);
}

static void finished(plugin_id id, void *unused) {
  FILE *out = fopen(file, "w");
  if (!out) {
    perror(file);
    return;
  }
  fprintf(out, "{\"all\":%" PRIu64 ",\"vector\":%" PRIu64 ",\"memory\":%" PRIu64 ",\"branch\":%" PRIu64
          ",\"other\":%" PRIu64 "}\n", executed[ALL], executed[VECTOR], executed[MEMORY], executed[BRANCH],
          executed[OTHER]);
  fclose(out);
}

PUBLIC int qemu_plugin_install(plugin_id id, const qemu_info *info, int argc, char **argv) {
  for (int i = 0; i < argc; i++)
    if (!strncmp(argv[i], "out=", 4)) snprintf(file, sizeof file, "%s", argv[i] + 4);
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, finished, NULL);
  return 0;
}
