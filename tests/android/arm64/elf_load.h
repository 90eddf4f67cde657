/* Android's libraries, as they lie in the APK, loaded by a glibc program: Android's own loader exists on phones only. */
#ifndef ELF_LOAD_H
#define ELF_LOAD_H

typedef struct Library Library;

/* Map, relocate and initialise a library; names that no loaded library has are asked of `fallback`, which
   may have none: to call such a function ends the program, as does every failure. */
Library *elf_load(const char *path, void *(*fallback)(const char *name));
void *elf_symbol(const Library *library, const char *name);
#endif
