#include "elf_load.h"

#include <elf.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 0x10000UL
#define MOST 4
/* Android packs relocations: a signature, then signed LEB128 numbers in groups that share what they can. */
#define DT_ANDROID_RELA 0x60000011
#define DT_ANDROID_RELASZ 0x60000012
enum { BY_INFO = 1, BY_DELTA = 2, BY_ADDEND = 4, HAS_ADDEND = 8 };

struct Library {
    uint8_t *base;
    const Elf64_Sym *symbols;
    const char *names;
    uint32_t count;
};

static Library loaded[MOST];
static int libraries;

static void *(*ask)(const char *);

static void fail(const char *what, const char *detail) {
    fprintf(stderr, "%s: %s\n", what, detail);
    exit(3);
}

static void unavailable(void) { fail("a function of Android's was called", "that this program has not"); }

void *elf_symbol(const Library *library, const char *name) {
    for (uint32_t i = 1; i < library->count; i++) {
        const Elf64_Sym *symbol = &library->symbols[i];
        if (symbol->st_shndx && symbol->st_value && !strcmp(library->names + symbol->st_name, name))
            return library->base + symbol->st_value;
    }
    return NULL;
}

static void *resolve(const Library *library, uint32_t index) {
    const Elf64_Sym *symbol = &library->symbols[index];
    if (symbol->st_shndx) return library->base + symbol->st_value;
    const char *name = library->names + symbol->st_name;
    for (int i = 0; i < libraries; i++) {
        void *found = elf_symbol(&loaded[i], name);
        if (found) return found;
    }
    void *found = ask(name);
    /* A weak name may be nobody's. Others are the screen's and the assets' functions, which no network calls. */
    return found || ELF64_ST_BIND(symbol->st_info) == STB_WEAK ? found : (void *)unavailable;
}

static void relocate(const Library *library, uint64_t offset, uint64_t info, int64_t addend) {
    uint64_t *place = (uint64_t *)(library->base + offset);
    switch (ELF64_R_TYPE(info)) {
        case R_AARCH64_RELATIVE:
            *place = (uint64_t)(library->base + addend);
            break;
        case R_AARCH64_ABS64:
        case R_AARCH64_GLOB_DAT:
        case R_AARCH64_JUMP_SLOT: {
            uint8_t *target = resolve(library, ELF64_R_SYM(info));
            *place = target ? (uint64_t)(target + addend) : 0;
            break;
        }
        default:
            fail("unknown relocation", library->names);
    }
}

static int64_t number(const uint8_t **at) {
    int64_t value = 0;
    unsigned shift = 0;
    uint8_t byte;
    do {
        byte = *(*at)++;
        value |= (int64_t)(byte & 127) << shift;
        shift += 7;
    } while (byte & 128);
    return shift < 64 && byte & 64 ? value | -((int64_t)1 << shift) : value;
}

static void relocate_packed(const Library *library, const uint8_t *at) {
    if (memcmp(at, "APS2", 4)) fail("packed relocations", "of another format");
    at += 4;
    int64_t left = number(&at);
    uint64_t offset = (uint64_t)number(&at), info = 0;
    int64_t addend = 0;
    while (left > 0) {
        int64_t size = number(&at), flags = number(&at);
        int64_t delta = flags & BY_DELTA ? number(&at) : 0;
        if (flags & BY_INFO) info = (uint64_t)number(&at);
        if (!(flags & HAS_ADDEND)) addend = 0;
        if ((flags & (HAS_ADDEND | BY_ADDEND)) == (HAS_ADDEND | BY_ADDEND)) addend += number(&at);
        for (left -= size; size > 0; size--) {
            offset += (uint64_t)(flags & BY_DELTA ? delta : number(&at));
            if (!(flags & BY_INFO)) info = (uint64_t)number(&at);
            if ((flags & (HAS_ADDEND | BY_ADDEND)) == HAS_ADDEND) addend += number(&at);
            relocate(library, offset, info, addend);
        }
    }
}

static void relocate_plain(const Library *library, uint64_t table, uint64_t bytes) {
    const Elf64_Rela *rela = (const Elf64_Rela *)(library->base + table);
    for (uint64_t i = 0; i < bytes / sizeof *rela; i++)
        relocate(library, rela[i].r_offset, rela[i].r_info, rela[i].r_addend);
}

/* Symbols are counted by the GNU hash table, as no other entry tells: the longest chain's end is the last one. */
static uint32_t count_symbols(const uint32_t *table) {
    uint32_t buckets = table[0], first = table[1], bloom = table[2], last = 0;
    const uint32_t *bucket = table + 4 + 2 * bloom, *chain = bucket + buckets;
    for (uint32_t i = 0; i < buckets; i++)
        if (bucket[i] > last) last = bucket[i];
    if (last < first) return first;
    while (!(chain[last - first] & 1)) last++;
    return last + 1;
}

Library *elf_load(const char *path, void *(*fallback)(const char *name)) {
    ask = fallback;
    int file = open(path, O_RDONLY);
    struct stat about;
    if (file < 0 || fstat(file, &about) || libraries == MOST) fail("cannot be opened", path);
    uint8_t *image = mmap(NULL, (size_t)about.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    const Elf64_Ehdr *header = (const Elf64_Ehdr *)image;
    if (image == MAP_FAILED || memcmp(image, ELFMAG, SELFMAG) || header->e_machine != EM_AARCH64)
        fail("no library for arm64", path);
    const Elf64_Phdr *part = (const Elf64_Phdr *)(image + header->e_phoff);
    uint64_t end = 0;
    for (int i = 0; i < header->e_phnum; i++)
        if (part[i].p_type == PT_LOAD && part[i].p_vaddr + part[i].p_memsz > end) end = part[i].p_vaddr + part[i].p_memsz;
    end = (end + PAGE - 1) / PAGE * PAGE;
    /* One writable and executable copy: protection is not what is tested here. */
    uint8_t *base = mmap(NULL, end, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) fail("no memory for", path);
    uint64_t value[64] = {0}, packed = 0;
    for (int i = 0; i < header->e_phnum; i++) {
        if (part[i].p_type == PT_LOAD) memcpy(base + part[i].p_vaddr, image + part[i].p_offset, part[i].p_filesz);
        if (part[i].p_type == PT_TLS) fail("thread-local storage is not built here", path);
    }
    for (int i = 0; i < header->e_phnum; i++) {
        if (part[i].p_type != PT_DYNAMIC) continue;
        for (const Elf64_Dyn *entry = (const Elf64_Dyn *)(base + part[i].p_vaddr); entry->d_tag != DT_NULL; entry++) {
            if (entry->d_tag >= 0 && entry->d_tag < 64) value[entry->d_tag] = entry->d_un.d_val;
            if (entry->d_tag == DT_ANDROID_RELA) packed = entry->d_un.d_val;
            if (entry->d_tag == DT_GNU_HASH) value[0] = entry->d_un.d_val;
        }
    }
    Library *library = &loaded[libraries];
    *library = (Library){
        base, (const Elf64_Sym *)(base + value[DT_SYMTAB]), (const char *)(base + value[DT_STRTAB]),
        count_symbols((const uint32_t *)(base + value[0])),
    };
    if (packed) relocate_packed(library, base + packed);
    relocate_plain(library, value[DT_RELA], value[DT_RELA] ? value[DT_RELASZ] : 0);
    relocate_plain(library, value[DT_JMPREL], value[DT_JMPREL] ? value[DT_PLTRELSZ] : 0);
    libraries++;
    __builtin___clear_cache((char *)base, (char *)base + end);
    void (**start)(int, char **, char **) = (void (**)(int, char **, char **))(base + value[DT_INIT_ARRAY]);
    for (uint64_t i = 0; value[DT_INIT_ARRAY] && i < value[DT_INIT_ARRAYSZ] / sizeof *start; i++) {
        /* 0 and -1 are holes that the linker left. */
        if (start[i] && start[i] != (void (*)(int, char **, char **))-1) start[i](0, NULL, NULL);
    }
    munmap(image, (size_t)about.st_size);
    close(file);
    return library;
}
