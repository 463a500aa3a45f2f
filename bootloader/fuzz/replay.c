/* Every file of a folder through a fuzz target, where there is no libFuzzer. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int main(int count, char **arguments) {
    static uint8_t data[1 << 20];
    char path[4096];
    int files = 0;
    for (int i = 1; i < count; i++) {
        DIR *folder = opendir(arguments[i]);
        struct dirent *entry;
        while (folder && (entry = readdir(folder))) {
            FILE *file;
            size_t n;
            if (entry->d_name[0] == '.')
                continue;
            snprintf(path, sizeof path, "%s/%s", arguments[i], entry->d_name);
            file = fopen(path, "rb");
            if (!file)
                return 1;
            n = fread(data, 1, sizeof data, file);
            fclose(file);
            uint8_t *exact = malloc(n + !n); /* so that a read behind the end is seen */
            for (size_t k = 0; k < n; k++)
                exact[k] = data[k];
            LLVMFuzzerTestOneInput(exact, n);
            free(exact);
            files++;
        }
        if (folder)
            closedir(folder);
    }
    printf("%d\n", files);
    return files == 0;
}
